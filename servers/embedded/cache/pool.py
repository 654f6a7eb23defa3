"""The memory of the pages."""

import torch

from kvload.servers.embedded.account.tables import Ints


class PagePool:
    """Pages of equal bytes, all allocated at construction.

    A page id stands for one page in each of ``planes`` arrays: methods that keep the same tokens in all layers use one
    plane a layer and one id for all of them; methods with tables of their own for every layer use a single plane.

    Args:
        pages: of each plane.
        page_bytes: bytes of a page in one plane.
        planes: number of arrays.
        device: where they live.

    Attributes:
        storage: ``(planes, pages + 2, page_bytes)`` uint8.
        null_page: id of a page of zeros beyond the pool, for the padding of tables.
        waste_page: id of a page beyond the pool that takes writes which go nowhere.
    """

    def __init__(self, pages: int, page_bytes: int, planes: int, device: torch.device) -> None:
        self.pages = pages
        self.page_bytes = page_bytes
        self.planes = planes
        # Zeros, not whatever memory held: bytes of unwritten slots are read as numbers before they are masked.
        self.storage = torch.zeros((planes, pages + 2, page_bytes), dtype=torch.uint8, device=device)
        self.null_page = pages
        self.waste_page = pages + 1

    def clear(self, pages: Ints) -> None:
        """Fill pages with zeros.

        A page may have held anything before. Where kinds of pages differ, what is not written yet must be cleared: it
        is read together with what is, and old bytes need not be numbers in the new kind.
        """
        if len(pages):
            self.storage.index_fill_(1, torch.from_numpy(pages).to(self.storage.device), 0)

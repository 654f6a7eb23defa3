"""The tasks that lose most to the full cache: what any router has to beat."""

from kvload.route_model import probability
from kvload.servers.router.policies.base import Question, Settings
from kvload.servers.router.policies.fragile import FragilePolicy


class TaskPolicy(FragilePolicy):
    """By the request's task alone, as far as the share reaches; within a task requests are drawn."""

    name = "task"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        router = settings.router
        levels = [] if router is None else [self._of(task) for task in self._tasks()]
        self._ordered = sorted(levels)

    def rank_of(self, value: float, question: Question) -> float:
        """Where the task's value lies among the tasks of the fit, each as often as the others."""
        if not self._ordered:
            return super().rank_of(value, question)
        below = sum(level < value for level in self._ordered)
        same = sum(level == value for level in self._ordered)
        draw = question.draw(self.settings.seed)
        return min((below + draw * max(same, 1)) / max(len(self._ordered), below + 1), 1 - 1e-9)

    def value(self, question: Question) -> float:
        """How much its task needs the full cache."""
        return self._of(question.task(self.settings.recogniser))

    def _tasks(self) -> list[str]:
        router = self.settings.router
        figure = None if router is None else router.loss if self.settings.target == "score" else router.event
        return [] if figure is None else list(figure.levels)

    def _of(self, task: str | None) -> float:
        router = self.settings.router
        figure = None if router is None else router.loss if self.settings.target == "score" else router.event
        if figure is None:
            return 0.0
        found = figure.by_task(task)
        return found if self.settings.target == "score" else probability(found)

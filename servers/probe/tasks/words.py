"""The words that the probe's texts are made of; each is one token of the probe's tokenizer."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS: tuple[str, ...] = _words(
    """
    lamp fox river apple cup chair table window door clock book pencil paper bottle basket hammer candle mirror
    carpet pillow blanket spoon fork knife plate bowl kettle pan oven broom bucket ladder rope chain key coin
    ring crown sword shield arrow drum flute violin piano guitar trumpet bell whistle ball kite doll puzzle
    robot rocket train wagon truck boat ship canoe anchor sail engine wheel tire pedal saddle helmet glove boot
    shoe sock scarf jacket shirt button zipper belt wallet purse umbrella tent lantern compass map flag badge
    medal trophy ticket stamp letter envelope parcel box crate barrel jar vase statue painting camera radio
    phone printer screen keyboard magnet battery cable switch bulb torch match stove fridge freezer sponge towel
    soap brush comb razor needle thread ribbon cloth leather wool cotton feather shell pebble stone brick tile
    plank nail screw wrench saw drill axe shovel rake hose fence gate bridge tower tree branch leaf root seed
    flower rose tulip daisy grass bush mushroom berry cherry peach pear plum grape lemon melon mango banana
    carrot onion potato tomato pepper bean corn bread cake cookie cheese butter egg honey sugar salt tea coffee
    juice milk soup salad sandwich pizza horse cow sheep goat pig dog cat rabbit mouse squirrel bear wolf lion
    tiger monkey zebra camel donkey duck goose swan owl eagle parrot crow turtle frog snake lizard crab whale
    dolphin shark salmon spider ant bee butterfly
    """
)
"""Things; every one may stand in a question, a fact or an answer."""

ADJECTIVES: tuple[str, ...] = _words(
    """
    red green blue yellow orange purple pink brown black white gray golden silver old new small large heavy
    light broken clean dirty wet dry soft hard round flat long short wooden shiny
    """
)
"""Qualities that tell things apart."""

COLORS: tuple[str, ...] = ADJECTIVES[:12]
"""The qualities that are colors."""

NAMES: tuple[str, ...] = _words(
    """
    Alice Bob Carol David Emma Frank Grace Henry Irene Jack Karen Leo Maria Nina Oscar Paul Rosa Sam Tina Victor
    Wendy Adam Bella Chris Diana Eric Fiona George Helen Ivan Julia Kevin Laura Martin Nora Olga Peter Ruth
    Simon Thomas Ursula Vera Walter Yara Zoe Anna Boris Clara Dennis Elena Felix Greta Hugo Ines Jonas Kate
    Lucas Mona Noah Otto Petra Ralf Sara Theo
    """
)
"""First names."""

PLACES: tuple[str, ...] = _words(
    """
    kitchen garden garage attic cellar library office museum school church hospital station airport harbor
    market bakery castle village forest desert island valley mountain beach meadow farm barn stable workshop
    theater stadium hotel
    """
)
"""Places where things are put and people live."""

JOBS: tuple[str, ...] = _words(
    """
    baker teacher doctor nurse pilot farmer painter writer singer dancer lawyer driver sailor cook tailor
    plumber
    """
)
"""What people work as."""

ORDINALS: tuple[str, ...] = ("first", "second", "third", "fourth", "fifth", "last")
"""Positions on a shelf that the ``nth`` task asks for."""

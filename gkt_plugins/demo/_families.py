"""The wording of the word problems: families, and the sentences that all families share.

Placeholders: ``{p}`` the person spoken of, ``{q}`` another person, ``{x}`` things (plural), ``{n}`` and ``{m}``
numbers, ``{r}`` the result. Sentences are written without a capital first letter, which comes at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from gkt_plugins.demo._worked import Operator

__all__ = ["BYSTANDERS", "FAMILIES", "NAMES", "NUMBER_WORDS", "RELATIONS", "TRANSFERS", "Ending", "Family", "Wording"]

NUMBER_WORDS: dict[str, int] = {
    "twice": 2, "doubles": 2, "half": 2, "triples": 3, "third": 3, "quarter": 4, "fifth": 5,
}  # fmt: skip
"""Words of a question that stand for a number."""

NAMES: tuple[str, ...] = (
    "Ana", "Ben", "Cara", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivy", "Jon", "Kim", "Leo",
    "Mia", "Noah", "Omar", "Pia", "Rosa", "Sam", "Tess", "Uma", "Vic", "Wes", "Yan", "Zoe",
)  # fmt: skip


@dataclass(frozen=True)
class Wording:
    """One way to say an operation; ``operand`` is set where the words fix it ("half")."""

    text: str
    operand: int | None = None


@dataclass(frozen=True)
class Ending:
    """A last operation that counts only when its own question is asked; else its sentence is a distractor."""

    op: Operator
    fact: str
    question: str
    conclusion: str


@dataclass(frozen=True)
class Family:
    """The wording of one kind of story."""

    name: str
    things: tuple[str, ...]
    starts: tuple[str, ...]
    groups: str
    """A start that is a product: {n} groups of {m} things."""
    events: dict[Operator, tuple[Wording, ...]]
    """operator → the ways to say it"""
    asides: tuple[str, ...]
    """Sentences with a number that never matters."""
    endings: tuple[Ending, ...]
    question: str = "How many {x} does {p} have now?"
    conclusion: str = "{p} has {r} {x} now."

    @property
    def templates(self) -> tuple[str, ...]:
        """Every sentence of this family."""
        events = (wording.text for wordings in self.events.values() for wording in wordings)
        endings = (text for e in self.endings for text in (e.fact, e.question))
        return (*self.starts, self.groups, *events, *self.asides, *endings, self.question)


RELATIONS: dict[Operator, tuple[Wording, ...]] = {
    "*": (Wording("{p} has {n} times as many {x} as {q}."), Wording("{p} has twice as many {x} as {q}.", 2)),
    "+": (Wording("{p} has {n} more {x} than {q}."),),
    "-": (Wording("{p} has {n} fewer {x} than {q}."),),
    "/": (Wording("{p} has half as many {x} as {q}.", 2),),
}
"""How {p}'s things follow from those of {q}."""

TRANSFERS: dict[Operator, tuple[Wording, ...]] = {
    "-": (Wording("{p} gives {q} {n} {x}."), Wording("{p} hands {n} {x} to {q}.")),
    "+": (Wording("{p} gets {n} {x} from {q}."), Wording("{p} takes {n} {x} from {q}.")),
}
"""What a gift does to {p}'s things."""

BYSTANDERS: tuple[str, ...] = (
    "the twins own {n} {x}.",
    "the twins lose {n} {x}.",
    "{p} also sees {n} birds.",
    "{p} also buys {n} apples.",
)
"""Other people and other things, whose numbers never count."""


def _events(
    add: tuple[str, ...], sub: tuple[str, ...], mul: tuple[Wording, ...], div: tuple[Wording, ...]
) -> dict[Operator, tuple[Wording, ...]]:
    return {"+": tuple(map(Wording, add)), "-": tuple(map(Wording, sub)), "*": mul, "/": div}


FAMILIES: tuple[Family, ...] = (
    Family(
        "shop",
        ("shirts", "cups", "lamps", "hats"),
        ("{p} has {n} {x} in the shop.", "{p} opens a shop with {n} {x}."),
        "{p} has {n} shelves with {m} {x} each.",
        _events(
            ("{p} orders {n} more {x}.", "a truck brings {p} {n} {x}."),
            ("{p} sells {n} {x}.", "{n} {x} of {p} break."),
            (Wording("{p} doubles the {x}.", 2), Wording("{p} stocks {n} times as many {x}.")),
            (Wording("{p} sells half of the {x}.", 2), Wording("{p} keeps only a third of the {x}.", 3)),
        ),
        ("{p} pays {n} coins for the light.", "the shop is {n} years old."),
        (
            Ending(
                "*",
                "each of the {x} costs {n} coins.",
                "How many coins are the {x} of {p} worth?",
                "the {x} of {p} are worth {r} coins.",
            ),
        ),
    ),
    Family(
        "garden",
        ("roses", "tulips", "beans", "herbs"),
        ("{p} has {n} {x} in the garden.", "{p} starts a bed with {n} {x}."),
        "{p} plants {n} rows of {m} {x}.",
        _events(
            ("{p} plants {n} more {x}.", "{n} new {x} come up for {p}."),
            ("{p} picks {n} {x}.", "snails eat {n} {x} of {p}."),
            (Wording("{p} triples the {x}.", 3), Wording("in spring {p} sees {n} times as many {x}.")),
            (Wording("frost kills half of the {x} of {p}.", 2), Wording("{p} leaves only a quarter of the {x}.", 4)),
        ),
        ("it rains for {n} days.", "{p} uses {n} cans of water."),
        (
            Ending(
                "/",
                "{n} of the {x} fit in a pot.",
                "How many pots does {p} need for the {x}?",
                "{p} needs {r} pots for the {x}.",
            ),
        ),
    ),
    Family(
        "bakery",
        ("rolls", "cakes", "pies", "buns"),
        ("{p} bakes {n} {x} at dawn.", "{p} has {n} {x} on the counter."),
        "{p} bakes {n} trays of {m} {x}.",
        _events(
            ("{p} bakes {n} more {x}.", "the oven gives {p} {n} fresh {x}."),
            ("{p} burns {n} {x}.", "guests eat {n} {x} of {p}."),
            (Wording("{p} doubles the {x}.", 2), Wording("{p} makes {n} times as many {x}.")),
            (Wording("{p} freezes half of the {x}.", 2), Wording("{p} is left with a third of the {x}.", 3)),
        ),
        ("the oven is {n} years old.", "{p} gets up {n} minutes early."),
        (
            Ending(
                "/", "a box holds {n} {x}.", "How many boxes does {p} fill with {x}?", "{p} fills {r} boxes with {x}."
            ),
        ),
    ),
    Family(
        "travel",
        ("maps", "photos", "cards", "tickets"),
        ("{p} packs {n} {x} for the trip.", "{p} leaves home with {n} {x}."),
        "{p} packs {n} bags with {m} {x} each.",
        _events(
            ("{p} finds {n} {x} in the town.", "the guide hands {p} {n} {x}."),
            ("{p} loses {n} {x} on the train.", "the wind takes {n} {x} of {p}."),
            (Wording("{p} triples the {x}.", 3), Wording("{p} comes to own {n} times as many {x}.")),
            (Wording("{p} mails home half of the {x}.", 2), Wording("{p} keeps only a fifth of the {x}.", 5)),
        ),
        ("the trip takes {n} hours.", "{p} walks {n} miles."),
        (
            Ending(
                "*",
                "each of the {x} weighs {n} grams.",
                "How many grams do the {x} of {p} weigh?",
                "the {x} of {p} weigh {r} grams.",
            ),
        ),
    ),
    Family(
        "library",
        ("novels", "comics", "papers", "atlases"),
        ("{p} has {n} {x} on the shelf.", "{p} looks after {n} {x}."),
        "{p} looks after {n} racks of {m} {x}.",
        _events(
            ("{p} borrows {n} more {x}.", "a reader brings {p} {n} {x}."),
            ("{p} returns {n} {x}.", "{p} lends out {n} {x}."),
            (Wording("{p} doubles the {x}.", 2), Wording("{p} soon lists {n} times as many {x}.")),
            (Wording("{p} stores half of the {x} away.", 2), Wording("only a quarter of the {x} stay with {p}.", 4)),
        ),
        ("the library opens at {n}.", "{p} reads for {n} hours."),
        (
            Ending(
                "/", "a cart takes {n} {x}.", "How many carts does {p} load with {x}?", "{p} loads {r} carts with {x}."
            ),
        ),
    ),
    Family(
        "school",
        ("pens", "chalks", "rulers", "stickers"),
        ("{p} brings {n} {x} to school.", "{p} has {n} {x} in class."),
        "{p} brings {n} packs of {m} {x}.",
        _events(
            ("{p} wins {n} {x}.", "the teacher hands {p} {n} {x}."),
            ("{p} uses up {n} {x}.", "{p} drops {n} {x} on the way."),
            (Wording("{p} triples the {x}.", 3), Wording("{p} earns up to {n} times as many {x}.")),
            (Wording("{p} shares out half of the {x}.", 2), Wording("{p} holds on to a third of the {x}.", 3)),
        ),
        ("the class has {n} desks.", "{p} is {n} years old."),
        (
            Ending(
                "*",
                "each of the {x} earns {n} points.",
                "How many points do the {x} of {p} earn?",
                "the {x} of {p} earn {r} points.",
            ),
        ),
    ),
    Family(
        "farm",
        ("hens", "goats", "ducks", "sheep"),
        ("{p} keeps {n} {x} on the farm.", "{p} owns {n} {x}."),
        "{p} keeps {n} pens of {m} {x}.",
        _events(
            ("{p} raises {n} more {x}.", "{n} young {x} are born to {p}."),
            ("{p} sells {n} {x} in town.", "{n} {x} of {p} run off."),
            (Wording("{p} doubles the {x}.", 2), Wording("{p} breeds {n} times as many {x}.")),
            (Wording("{p} sells half of the {x}.", 2), Wording("{p} ends up with a fifth of the {x}.", 5)),
        ),
        ("the barn has {n} doors.", "{p} drives {n} miles."),
        (
            Ending(
                "*",
                "each of the {x} eats {n} kilos.",
                "How many kilos do the {x} of {p} eat?",
                "the {x} of {p} eat {r} kilos.",
            ),
        ),
    ),
    Family(
        "savings",
        ("coins", "notes", "stamps", "tokens"),
        ("{p} has {n} {x} in a jar.", "{p} saves {n} {x}."),
        "{p} saves {n} jars of {m} {x}.",
        _events(
            ("{p} earns {n} {x}.", "grandma sends {p} {n} {x}."),
            ("{p} spends {n} {x}.", "{p} pays {n} {x} for lunch."),
            (Wording("{p} triples the {x}.", 3), Wording("the bank pays {p} {n} times as many {x}.")),
            (Wording("{p} donates half of the {x}.", 2), Wording("{p} has just a quarter of the {x} left.", 4)),
        ),
        ("the bank is {n} miles away.", "{p} waits {n} weeks."),
        (
            Ending(
                "/",
                "a toy costs {n} {x}.",
                "How many toys can {p} buy with the {x}?",
                "{p} can buy {r} toys with the {x}.",
            ),
        ),
    ),
    Family(
        "beach",
        ("shells", "stones", "crabs", "pearls"),
        ("{p} finds {n} {x} at the sea.", "{p} gathers {n} {x}."),
        "{p} fills {n} pails with {m} {x} each.",
        _events(
            ("{p} digs up {n} {x}.", "a wave washes {n} {x} up to {p}."),
            ("{p} throws {n} {x} back.", "a bird takes {n} {x} of {p}."),
            (Wording("{p} doubles the {x}.", 2), Wording("{p} goes on to gather {n} times as many {x}.")),
            (Wording("the sea takes half of the {x} of {p}.", 2), Wording("{p} saves a third of the {x}.", 3)),
        ),
        ("the water is {n} feet deep.", "{p} swims for {n} minutes."),
        (
            Ending(
                "/",
                "{n} of the {x} make a chain.",
                "How many chains can {p} make of the {x}?",
                "{p} can make {r} chains of the {x}.",
            ),
        ),
    ),
    Family(
        "workshop",
        ("nails", "bolts", "chairs", "wheels"),
        ("{p} has {n} {x} in the workshop.", "{p} begins with {n} {x}."),
        "{p} opens {n} crates of {m} {x}.",
        _events(
            ("{p} builds {n} more {x}.", "a helper makes {n} {x} for {p}."),
            ("{p} bends {n} {x}.", "{p} ships {n} {x}."),
            (Wording("{p} triples the {x}.", 3), Wording("a machine makes {n} times as many {x} for {p}.")),
            (Wording("{p} paints and ships half of the {x}.", 2), Wording("{p} puts aside a fifth of the {x}.", 5)),
        ),
        ("the saw runs for {n} hours.", "{p} owns {n} old tools."),
        (
            Ending(
                "*",
                "each of the {x} takes {n} minutes.",
                "How many minutes do the {x} of {p} take?",
                "the {x} of {p} take {r} minutes.",
            ),
        ),
    ),
)

"""The world of the demo: what the shop's database and the devices must agree on, the same for every start."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

COUNTRIES = ("FR", "DE", "ES", "IT", "GB", "NL", "BE", "PT")
SITES = {
    "FR": ("Lyon", "Lille", "Nantes"),
    "DE": ("Hamburg", "Leipzig"),
    "ES": ("Valencia", "Bilbao"),
    "IT": ("Turin", "Bari"),
    "GB": ("Leeds", "Bristol"),
    "NL": ("Utrecht",),
    "BE": ("Ghent",),
    "PT": ("Porto",),
}
CURRENCY = {"GB": "GBP"}
SEGMENTS = ("retail", "restaurant", "pharmacy", "wholesale")
FIRST = ("Ada", "Bo", "Cléo", "Dario", "Edda", "Femke", "Gil", "Hana", "Ines", "Jorge", "Kim", "Lena", "Marek", "Nora")
LAST = ("Almeida", "Bakker", "Costa", "Dubois", "Evans", "Fischer", "García", "Haas", "Ibarra", "Janssen", "Keller")
MODELS = {"chiller": (2.0, 8.0), "freezer": (-25.0, -15.0), "cellar": (10.0, 16.0)}
CATALOG = {
    f"{kind}-{size}": price
    for kind, base in (("oyster", 1890), ("cheese", 740), ("gelato", 520), ("salmon", 2350), ("vaccine", 4100))
    for size, price in (("s", base), ("m", base * 2 - 110), ("l", base * 4 - 390))
}
"""Stock-keeping unit -> price in cents."""


@dataclass(frozen=True)
class Unit:
    """A refrigerated unit; it must stay between its two temperatures (degrees Celsius)."""

    id: str
    customer_id: int
    model: str
    site: str
    low: float
    high: float


@dataclass(frozen=True)
class Person:
    id: int
    name: str
    email: str
    country: str
    segment: str


def person(number: int, random: Random) -> Person:
    """Customer `number`. One in a hundred has an address that no business application takes."""
    first, last = random.choice(FIRST), random.choice(LAST)
    email = f"{first}.{last}.{number}@example.org".lower() if random.random() > 0.01 else f"{first} (no address)"
    return Person(number, f"{first} {last}", email, random.choice(COUNTRIES), random.choice(SEGMENTS))


def fleet(count: int, customers: int, seed: int) -> list[Unit]:
    """The demo's units: the same for the same arguments, wherever they are asked for."""
    random = Random(seed)
    units = []
    for number in range(1, count + 1):
        country = COUNTRIES[number % len(COUNTRIES)]
        model = random.choice(tuple(MODELS))
        low, high = MODELS[model]
        site = random.choice(SITES[country])
        units.append(Unit(f"{country.lower()}-{number:04d}", random.randint(1, customers), model, site, low, high))
    return units

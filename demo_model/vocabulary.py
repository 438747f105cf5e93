"""What flux-emoji can draw: nouns with their synonyms, art styles, background colours, relations and counts."""

from __future__ import annotations

from dataclasses import dataclass

from training import concepts
from training.concepts.grammar import article


@dataclass(frozen=True)
class Noun:
    """One drawable thing: its name, the Unicode code point of its emoji and other words for it."""

    name: str
    codepoint: str
    synonyms: tuple[str, ...]


def _noun(line: str) -> Noun:
    name, codepoint, synonyms = (part.strip() for part in line.split("|"))
    return Noun(name, codepoint, tuple(s.strip() for s in synonyms.split(",")))


NOUNS: tuple[Noun, ...] = tuple(
    _noun(line)
    for line in """
    cat|1f431|kitty, kitten, feline
    dog|1f436|puppy, hound, doggy
    fox|1f98a|vixen, reynard
    lion|1f981|king of beasts, leo
    panda|1f43c|panda bear, giant panda
    frog|1f438|toad, anuran
    pig|1f416|hog, swine
    elephant|1f418|tusker, pachyderm
    giraffe|1f992|camelopard, giraffa
    rabbit|1f407|bunny, hare
    penguin|1f427|sphenisciform, seabird
    owl|1f989|hooter, bird of minerva
    turtle|1f422|tortoise, terrapin
    shark|1f988|jaws, dogfish
    octopus|1f419|devilfish, cephalopod
    butterfly|1f98b|moth, lepidopteran
    bee|1f41d|honeybee, bumblebee
    snail|1f40c|escargot, gastropod
    crab|1f980|crustacean, decapod
    duck|1f986|mallard, drake
    flamingo|1f9a9|wading bird, phoenicopterid
    ladybug|1f41e|ladybird, lady beetle
    car|1f697|automobile, auto, motorcar
    bus|1f68c|coach, omnibus
    train|1f682|locomotive, steam engine
    airplane|2708|plane, aeroplane, aircraft
    rocket|1f680|spaceship, projectile
    sailboat|26f5|sailing boat, yacht
    soccer ball|26bd|football, soccerball
    basketball|1f3c0|hoops, hoop ball
    apple|1f34e|orchard apple, malus
    banana|1f34c|plantain, bananas
    strawberry|1f353|garden strawberry, berry
    pizza|1f355|pizza pie, pizza slice
    donut|1f369|doughnut, sinker
    cherry|1f352|cherries, sweet cherry
    grapes|1f347|grape, grapevine
    watermelon|1f349|melon, watermelon slice
    pineapple|1f34d|ananas, pineapple plant
    carrot|1f955|cultivated carrot, carrots
    mushroom|1f344|toadstool, fungus
    hamburger|1f354|burger, beefburger
    avocado|1f951|alligator pear, avocado pear
    cake|1f382|birthday cake, gateau
    house|1f3e0|home, cottage
    castle|1f3f0|palace, fortress
    rose|1f339|rosebush, red rose
    sunflower|1f33b|helianthus, sun flower
    tree|1f333|oak, deciduous tree
    cactus|1f335|cacti, saguaro
    palm|1f334|palm tree, coconut tree
    umbrella|2614|parasol, brolly
    clock|23f0|alarm clock, timepiece
    guitar|1f3b8|electric guitar, six string
    key|1f511|passkey, door key
    book|1f4d5|volume, textbook
    camera|1f4f7|photographic camera, kodak
    crown|1f451|diadem, tiara
    balloon|1f388|party balloon, toy balloon
    gift|1f381|present, wrapped box
    bell|1f514|chime, gong
    robot|1f916|android, automaton
    snowman|26c4|snow figure, frosty
    heart|2764|red heart, valentine
    """.strip().splitlines()
)

NOUN_NAMES: tuple[str, ...] = tuple(noun.name for noun in NOUNS)
STYLES: tuple[str, ...] = ("noto", "twemoji", "openmoji", "fluent")
RELATIONS: tuple[str, ...] = ("next to", "above", "below")
COUNTS: tuple[str, ...] = ("two", "three", "four")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "blue": (120, 170, 235),
    "green": (140, 205, 140),
    "yellow": (250, 225, 120),
    "pink": (250, 180, 200),
    "purple": (190, 160, 225),
}


# Plurals that the shipped model was trained on, before the pack knew better ones.
_TRAINED = {"snowman": "snowmans", "fungus": "funguses", "king of beasts": "king of beasts"}


def plural(word: str) -> str:
    """English plural of the last word of `word` ("cherry" -> "cherries"); itself where that is plural already."""
    return _TRAINED.get(word) or concepts.plural(word) or word


def with_article(word: str) -> str:
    """`word` with "a" or "an" before it; words that are plural already stay bare."""
    return article(word) + word

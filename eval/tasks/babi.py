"""Small worlds of people, rooms and things, as in the first three bAbI tasks (Weston et al., arXiv 1502.05698)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
MOVES = ("moved to", "went to", "went back to", "journeyed to", "travelled to")
TAKES = ("took", "got", "grabbed", "picked up")
DROPS = ("dropped", "discarded", "put down", "left")


@dataclass(frozen=True)
class Story:
    """Facts in the order of time, a question about the end of it, and the room that answers it."""

    facts: tuple[str, ...]
    question: str
    answer: str


@dataclass
class World:
    """Who is where and holds what; `visited` are the rooms a thing was in, one after another."""

    rng: random.Random
    facts: list[str] = field(default_factory=list)
    place: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    visited: dict[str, list[str]] = field(default_factory=dict)

    def move(self) -> None:
        """Someone goes to a room that is not the present one, with all that is held."""
        person = self.rng.choice(PEOPLE)
        room = self.rng.choice([room for room in ROOMS if room != self.place.get(person)])
        self.place[person] = room
        self.facts.append(f"{person} {self.rng.choice(MOVES)} the {room}.")
        for thing in (thing for thing in THINGS if self.holder.get(thing) == person):
            self.visited[thing].append(room)

    def handle(self) -> None:
        """Someone whose room is known puts down what is held, or takes what lies free: things that were left are in
        their room, and things not yet seen may be anywhere."""
        person = self.rng.choice([person for person in PEOPLE if person in self.place])
        held = [thing for thing in THINGS if self.holder.get(thing) == person]
        room = self.place[person]
        free = [t for t in THINGS if t not in self.holder and self.visited.get(t, [room])[-1] == room]
        if held and (not free or self.rng.random() < 0.5):
            thing = self.rng.choice(held)
            del self.holder[thing]
            self.facts.append(f"{person} {self.rng.choice(DROPS)} the {thing}.")
        elif free:
            thing = self.rng.choice(free)
            self.holder[thing] = person
            self.visited.setdefault(thing, [room])
            self.facts.append(f"{person} {self.rng.choice(TAKES)} the {thing} there.")


def where_is_person(rng: random.Random) -> Story:
    """qa1: two to ten moves; the last room of one person."""
    world = World(rng)
    for _ in range(2 * rng.randint(1, 5)):
        world.move()
    person = rng.choice(sorted(world.place))
    return Story(tuple(world.facts), f"Where is {person}?", world.place[person])


def where_is_thing(rng: random.Random) -> Story:
    """qa2: where a thing is that someone took, and perhaps carried and left."""
    world, things = _eventful(rng, rng.randint(4, 12), lambda rooms: True)
    thing = rng.choice(things)
    return Story(tuple(world.facts), f"Where is the {thing}?", world.visited[thing][-1])


def where_was_thing(rng: random.Random) -> Story:
    """qa3: the room that a thing was in before its last one; it was in its last one only once."""
    world, things = _eventful(rng, rng.randint(8, 24), lambda rooms: len(rooms) > 1 and rooms.count(rooms[-1]) == 1)
    thing = rng.choice(things)
    before, room = world.visited[thing][-2:]
    return Story(tuple(world.facts), f"Where was the {thing} before the {room}?", before)


def _eventful(rng: random.Random, events: int, worth_asking: Callable[[list[str]], bool]) -> tuple[World, list[str]]:
    """At least so many events, and as many more as it takes for a thing to have been in rooms worth asking about."""
    world = World(rng)
    world.move()
    while True:
        things = [thing for thing in THINGS if thing in world.visited and worth_asking(world.visited[thing])]
        if things and len(world.facts) >= events:
            return world, things
        if rng.random() < 0.6:
            world.move()
        else:
            world.handle()

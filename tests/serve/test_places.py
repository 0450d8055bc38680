"""Places for images, and the amount of decoded pixels: bounded, fair, given back."""

import asyncio

import pytest

from ccsnet.serve.places import Budget, FullError, Places


def test_places_are_given_back():
    places = Places(2)
    with places.take(), places.take():
        assert places.taken == 2
        with pytest.raises(FullError), places.take():
            raise AssertionError("there is no third")
    assert places.taken == 0
    with pytest.raises(FullError), places.take(3):
        raise AssertionError("there are not so many")


def test_who_is_turned_away_hears_when_there_is_room():
    """Ten left in ten seconds; of the four who are here the last leaves in about four."""
    now = 0.0
    places = Places(4, clock=lambda: now)
    assert places.retry_after == 1
    for _ in range(11):
        now += 1
        with places.take():
            pass
    with places.take(4):
        with pytest.raises(FullError) as error, places.take():
            pass
        assert error.value.retry_after == 4
        now += 1000
        assert places.retry_after == 1  # What was long ago says nothing.


def test_a_budget_is_never_exceeded_and_comes_in_order():
    budget, order, most = Budget(10), [], 0

    async def one(name, amount):
        nonlocal most
        async with budget.take(amount):
            order.append(name)
            most = max(most, budget.used)
            await asyncio.sleep(0.001)

    async def all_of_them():
        await asyncio.gather(*(one(i, amount) for i, amount in enumerate([6, 4, 9, 1, 1, 5, 3])))

    asyncio.run(all_of_them())
    assert order == list(range(7))  # The large third one lets nobody pass.
    assert (most <= 10, budget.used) == (True, 0)


def test_more_than_the_budget_is_taken_alone():
    budget = Budget(10)

    async def alone():
        async with budget.take(25):
            assert budget.used == 25
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02), budget.take(1):
                    raise AssertionError("nothing is left")
        async with budget.take(10):
            assert budget.used == 10

    asyncio.run(alone())
    assert budget.used == 0

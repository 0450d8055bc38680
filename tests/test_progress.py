import pytest

from ccsnet.progress import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0:00:00"),
        (59.6, "0:01:00"),
        (3661.0, "1:01:01"),
        (86399.0, "23:59:59"),
        (266401.0, "3 d 2:00:01"),
    ],
)
def test_times_as_people_read_them(seconds, text):
    assert duration(seconds) == text

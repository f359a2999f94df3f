"""Looks of curves."""

from ph_l2o.palette import Look, looks


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2)."""
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def found() -> dict[str, Look]:
    return looks([f"o{k}" for k in range(10)], ["o3", "o5", "o7", "o9"])


def test_looks_come_in_the_order_of_the_names_and_differ() -> None:
    assert list(found()) == [f"o{k}" for k in range(10)]
    assert [name for name, look in found().items() if look.strong] == ["o3", "o5", "o7", "o9"]
    assert len({look.color for look in found().values()}) == len({look.dark for look in found().values()}) == 10
    assert not found()["o3"].dashes  # the first that is emphasized is a solid line


def test_dashes_tell_curves_of_one_colour_apart():
    many = list(looks(map(str, range(18))).values())
    assert len({look.color for look in many}) == 6
    assert len({(look.color, look.dashes) for look in many}) == 18


def test_they_can_be_seen_on_both_grounds() -> None:
    for look in found().values():
        assert contrast(look.dark, "#14171B") >= 4.5
        assert contrast(look.color, "#FFFFFF") >= (3 if look.strong else 2)

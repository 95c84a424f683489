"""How a refusal to go on names what differs."""

from membuilder.settings import described, difference


def test_differences_are_named_by_dotted_key_with_both_values():
    recorded = {"seed": 1, "prompts": {"set": "full", "shown": 20}, "systems": ["a"], "gone": None, "empty": {}}
    present = {"seed": 1, "prompts": {"set": "compact", "shown": 20}, "systems": ["a", "b"], "new": 0, "empty": {}}
    differing = difference(recorded, present)
    assert differing == {
        "gone": (None, None),
        "new": (None, 0),
        "prompts.set": ("full", "compact"),
        "systems": (["a"], ["a", "b"]),
    }
    assert "prompts.set='full' (now 'compact')" in described(differing)
    assert difference(recorded, recorded) == {} and difference(recorded, present, ["seed"]) == {}


def test_only_some_of_many_are_named():
    differing = difference({f"k{n}": 0 for n in range(9)}, {f"k{n}": 1 for n in range(9)})
    assert described(differing).endswith("k3=0 (now 1) and 5 more")

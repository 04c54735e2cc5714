from benchmarks.hooks import measure_hooks


def test_hooks_pile_up_by_transformers_own_way_alone():
    hooks = measure_hooks(2)
    assert hooks["transformers"].count > 3  # three layers, hooked anew at every switch-on
    assert hooks["ours"].count == 1  # the language model's; towers are frozen

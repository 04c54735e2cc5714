"""Cache the frozen image encoder's embeddings of whole splits, before a training needs them.

The body, with its documentation, is `aurora_rl/scripts/cache_features.py`.
"""

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("data_prep/cache_features.py")  # before the import of torch, which takes seconds
    from aurora_rl.scripts.cache_features import run

    run()

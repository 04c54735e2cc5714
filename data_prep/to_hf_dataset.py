"""Write the data of a recipe as a Hugging Face dataset; `aurora-rl convert --to hf` writes a benchmark by its form.

The body, with its documentation, is `aurora_rl/scripts/to_hf_dataset.py`.
"""

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("data_prep/to_hf_dataset.py")  # before the import of torch, which takes seconds
    from aurora_rl.scripts.to_hf_dataset import main

    main()

"""Trainers: TRL's SFT and GRPO with frames, sound and masks."""

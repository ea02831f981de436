"""Parameter-efficient tuning of a frozen backbone: soft prompts (MPT, Wang et al. 2023), and what they compare with."""

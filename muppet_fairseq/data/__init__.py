"""What lies between the binarised files and the trainer: tokens, datasets, schedules."""

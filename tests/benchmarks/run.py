"""All benchmarks, one after the other: `make bench`."""

import attention
import checkpointing
import finetuning
import generation
import pretraining
import strategies
import training_step

if __name__ == "__main__":
    attention.main()
    training_step.main()
    generation.main()
    finetuning.main(accuracy=False)
    strategies.main()
    checkpointing.main()
    pretraining.main()

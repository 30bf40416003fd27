"""All benchmarks, one after the other: `make bench`."""

import attention
import finetuning
import training_step

if __name__ == "__main__":
    attention.main()
    training_step.main()
    finetuning.main(accuracy=False)

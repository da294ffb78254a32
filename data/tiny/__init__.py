"""The bundled model and data set, and the scripts that made them.

From nothing, in this order:

    python -m data.tiny.train                               weights and tokenizer
    python -m data.tiny.train_mtp                           the MTP layer behind them
    python -m ref_dsinfer.fp8 --model-path data/tiny/model --output-path data/tiny/model-fp8
    python -m data.tiny.rows                                data set and programs' tests
    python run_eval.py --backend pytorch --model data/tiny/model \\
        --input-file data/tiny/final_output.pkl --output-file /tmp/answers.pkl
    python eval_accuracy.py --input-file /tmp/answers.pkl \\
        --livecodebench-file data/tiny/livecodebench.jsonl
    python -m data.tiny.scores /tmp/answers_evaluated.pkl   scores.json

The bundled weights come from a training of 6,800 steps on two CPU cores that was stopped and
resumed with other numbers of threads; from step 1,800 on the learning rate fell linearly, and at
step 4,600 its end was put off from step 6,000 to step 6,800. The MTP layer behind them was taken
from its training at step 148 of 200, before the learning rate had fallen to zero.
"""

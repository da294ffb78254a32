"""The bundled model and data set, and the scripts that made them.

To make them from scratch, in this order:

    python -m data.tiny.train                               weights and tokenizer
    python -m data.tiny.train_mtp                           the MTP layer
    python -m ref_dsinfer.fp8 --model-path data/tiny/model --output-path data/tiny/model-fp8
    python -m data.tiny.rows                                data set and programs' tests
    python run_eval.py --backend pytorch --model data/tiny/model \\
        --input-file data/tiny/final_output.pkl --output-file /tmp/answers.pkl
    python eval_accuracy.py --input-file /tmp/answers.pkl \\
        --livecodebench-file data/tiny/livecodebench.jsonl
    python -m data.tiny.scores /tmp/answers_evaluated.pkl   scores.json

The bundled weights were trained for 6,800 steps on two CPU cores. The training was interrupted and
resumed with other numbers of threads; from step 1,800 on, the learning rate decreased linearly, and
at step 4,600 its end was moved from step 6,000 to step 6,800. The MTP layer is the state at step
148 of 200, before its learning rate reached zero.
"""

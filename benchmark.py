"""The constants of the DeepSeek-R1 benchmark in this round of MLPerf Inference, defined only here.

LoadGen's settings (seeds, latencies, minimum durations and counts) are in mlperf/mlperf.conf.
"""

ROUND = "v6.1"
MODEL = "deepseek-ai/DeepSeek-R1"
REVISION = "56d4cbbb4d29f4355bab4b9a39ccb717a14ad5ad"  # not R1-0528, which has other scores
TASK_ROWS = {"aime": 932, "gpqa": 198, "livecodebench": 349, "math500": 499, "mmlu_pro": 2410}
ROWS = sum(TASK_ROWS.values())  # 4388, of the data set
PROMPT_TOKENS = 803.8  # of a prompt on average
LONGEST_PROMPT = 3140  # tokens
CALIBRATION_ROWS = 500
MAX_NEW_TOKENS = 20_000  # of an answer
MTP_STEPS = 3  # the maximum number of draft tokens per step

# The reference's figures, and the limits derived from them, which apply to the full data set
EXACT_MATCH = 81.3582  # percent
POLICY_EXACT_MATCH = 81.9132  # in the rules' text; the official checker has the one above
TOKENS_PER_SAMPLE = 3886.2274
# R1's published figures by task, in percent, and the lengths of its published answers in tokens,
# which are somewhat longer, as their limit was 32,768
TASK_SCORES = {
    "aime": 83.91,
    "gpqa": 71.21,
    "livecodebench": 88.25,
    "math500": 95.59,
    "mmlu_pro": 77.39,
}
ANSWER_TOKENS, ANSWER_TOKENS_DEVIATION = 4043.4, 5065.4
EXACT_MATCH_MIN = 0.99 * EXACT_MATCH
POLICY_EXACT_MATCH_MIN = 0.99 * POLICY_EXACT_MATCH
TOKENS_MIN, TOKENS_MAX = 0.9 * TOKENS_PER_SAMPLE, 1.1 * TOKENS_PER_SAMPLE

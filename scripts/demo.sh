#!/bin/sh
# The main job on the embedded model: ask, fine-tune with LoRA on the self-cognition rows, ask again, show the curve.
set -eu
MODEL=SmolLM2-135M-Instruct
OUT=${OUT:-output/demo}
QUESTION="Who are you?"

echo "== 1/3  before: $QUESTION"
swift infer --model "$MODEL" --temperature 0 --max_new_tokens 48 --prompt "$QUESTION"

echo "== 2/3  fine-tuning $MODEL with LoRA on the self-cognition rows"
swift sft --model "$MODEL" \
    --dataset swift/self-cognition --model_name 小燕 Swallow --model_author 燕子实验室 "the Swallow Lab" \
    --train_type lora --target_modules all-linear --lora_rank 8 --lora_alpha 32 --lora_dropout 0 \
    --num_train_epochs 2 --per_device_train_batch_size 8 --gradient_accumulation_steps 1 --group_by_length true \
    --learning_rate 1e-3 --gradient_checkpointing false --logging_steps 1 --save_strategy epoch \
    --max_length 256 --output_dir "$OUT"

RUN=$(ls -td "$OUT"/v*/ | head -n 1)
echo "== 3/3  after: $QUESTION"
swift infer --adapters "$RUN" --temperature 0 --max_new_tokens 48 --prompt "$QUESTION"
echo
echo "run directory: $RUN"
echo "loss curve:    ${RUN}images/train_loss.png"
echo "talk to it:    swift infer --adapters $RUN"

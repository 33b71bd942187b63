"""Fine-tuning: the recipes of `glmkit finetune`, `glmkit data` and `glmkit evaluate`."""

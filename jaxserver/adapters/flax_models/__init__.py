"""Language models whose parent is `transformers.FlaxPreTrainedModel`, as `ModelFns`."""

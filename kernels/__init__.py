"""The ground floor: tensors in, tensors out. Three operations, each with a plain reference beside its fast paths."""

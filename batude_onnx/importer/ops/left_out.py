"""Ops that have no converter on purpose, and why; whatever else is missing has only not been needed yet."""

from __future__ import annotations

from batude_onnx.importer.registry import absent

absent("torch has no tensors of text", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer")
absent("it works on files of pictures", "ImageDecoder")
absent("it draws random numbers", "Bernoulli", "Multinomial")
absent("it draws random numbers", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
absent("it is a loss, which training brings itself", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
absent("integer arithmetic has no gradient", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
absent("the length of its loop depends on the data", "Scan")
absent("optionals are no tensors", "Optional", "OptionalGetElement", "OptionalHasElement")
absent("sequences are no tensors", "ConcatFromSequence", "SplitToSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty")
absent("sequences are no tensors", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap")
absent("no onnxruntime reads its opset", "CausalConvWithState", "LinearAttention")
absent("it is an optimizer's step", "*", domain="ai.onnx.preview.training")
absent("no network of convolutions uses its domain", "*", domain="ai.onnx.ml")
absent("its domain is a preview", "*", domain="ai.onnx.preview")

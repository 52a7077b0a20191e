"""The Hugging Face surface: existing code runs with its import line changed to `behold`.

processor            AutoProcessor: text and pictures to tensors (with tokenizer, image_processor, images, padding,
                     batch, options)
model                AutoModelForImageTextToText: a torch module with forward and generate (with config, forward,
                     call, inputs, loading)
generation           generate's options to SamplingParams; unsupported: what is refused, by name
streamers            TextStreamer, TextIteratorStreamer
pipeline             pipeline("image-text-to-text") (with pipeline_inputs)
quantization_config  QuantoConfig, BitsAndBytesConfig
"""

"""A runtime of MLServer around an encoder, as somebody who serves a surrogate writes one."""

from __future__ import annotations

import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from sslguard.encoders.load import load_encoder


class EncoderRuntime(MLModel):
    """Takes one tensor, images or texts; the model's settings name the encoder."""

    async def load(self) -> bool:
        self.encoder = load_encoder(self.settings.parameters.extra["encoder"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (tensor,) = payload.inputs
        if tensor.datatype == "BYTES":
            items = StringCodec.decode_input(tensor)
        else:
            items = torch.from_numpy(NumpyCodec.decode_input(tensor).copy())
        outputs = [NumpyCodec.encode_output("embeddings", self.encoder.embed(items))]
        return InferenceResponse(model_name=self.name, outputs=outputs)

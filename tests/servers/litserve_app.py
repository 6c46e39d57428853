"""An encoder of texts behind LitServe's OpenAI embeddings. Run: python litserve_app.py ENCODER PORT"""

from __future__ import annotations

import sys

import litserve

from sslguard.encoders.load import load_encoder


class Embeddings(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.encoder = load_encoder(sys.argv[1])

    def predict(self, inputs: list[str]) -> list[list[float]]:
        return self.encoder.embed(inputs).tolist()


if __name__ == "__main__":
    api = Embeddings(spec=litserve.OpenAIEmbeddingSpec())
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False)

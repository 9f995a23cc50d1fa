"""Picks of a run as int8 TFLite, in the LiteRT interpreter, against their float logits on the test images.

    python benchmarks/int8.py RUN --data-dir DIR

An output step is the scale of the int8 logits: what two neighbouring numbers differ by.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter

from nas.arch import Arch
from nas.config.search import Config
from nas.lower import tflite
from nas.lower.verify import run_tflite
from nas.pipeline.deliver import CALIBRATION
from nas.pipeline.finetune import load_weights
from nas.pipeline.setup import load_finished_inputs
from nas.run.directory import Run
from nas.run.records import Front
from nas.training import evaluation
from nas.training.data import normalise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    run = Run.existing(options.run)
    config = Config.from_json(run.config | {"data_dir": options.data_dir}, str(run.path))
    front = run.read("front.json", Front)
    inputs = load_finished_inputs(config, run, front.target, images=True)
    data, cpu = inputs.data, torch.device("cpu")
    test = data.test.part(0, min(options.images, len(data.test)))
    images, labels = normalise(test.images, data), test.labels.numpy()
    calibration = evaluation.calibration_images(data, CALIBRATION, 64, cpu, inputs.seed)
    print(f"{data.name}, {len(labels)} test images, {CALIBRATION} training images for the scales")
    for card in front.cards:
        model = load_weights(inputs, Arch.from_json(run.read_json(f"archs/{card.id}/arch.json")), "")
        file = tflite.lower(model, in_ch=data.in_ch, size=data.size, calibration=calibration)
        with torch.inference_mode():
            wanted = torch.cat([model(part) for part in images.split(256)]).numpy()  # type: ignore[no-untyped-call]
        got = run_tflite(file, images)
        interpreter = Interpreter(model_content=file)
        interpreter.allocate_tensors()
        steps = np.abs(got - wanted) / interpreter.get_output_details()[0]["quantization"][0]
        float_, int8 = (100 * float(np.mean(y.argmax(1) == labels)) for y in (wanted, got))
        print(f"{card.id}: median {np.median(steps):.2f}, p99 {np.percentile(steps, 99):.2f}, most "
              f"{steps.max():.1f} steps; accuracy {float_:.2f} % float, {int8:.2f} % int8")


if __name__ == "__main__":
    main()

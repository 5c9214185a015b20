"""Segmentation models in the forms in which EfficientSAM and SAM are exported, small enough to be written down."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from moebius_lab.config import OPSET


def reddish(path: str | Path) -> None:
    """Write a model that takes for the object whatever is redder than it is green, wherever the point is.

    It has two masks, of which the second is better: the first is the opposite.
    """
    make, floats = helper.make_node, TensorProto.FLOAT
    constants = [
        numpy_helper.from_array(np.float32([1, -1, 0]).reshape(1, 3, 1, 1), "red"),
        numpy_helper.from_array(np.float32(0.1), "least"),
        numpy_helper.from_array(np.int64([1]), "one"),
        numpy_helper.from_array(np.float32([[[0.2, 0.9]]]), "fixed"),
        numpy_helper.from_array(np.float32(0), "nothing"),
    ]
    nodes = [
        make("Conv", ["batched_images", "red"], ["redness"]),
        make("Sub", ["redness", "least"], ["object"]),
        make("Neg", ["object"], ["rest"]),
        make("Concat", ["rest", "object"], ["both"], axis=1),
        make("Unsqueeze", ["both", "one"], ["output_masks"]),
        make("ReduceSum", ["batched_point_coords"], ["sum"], keepdims=0),
        make("ReduceSum", ["batched_point_labels"], ["labels"], keepdims=0),
        make("Add", ["sum", "labels"], ["given"]),
        make("Mul", ["given", "nothing"], ["zero"]),
        make("Add", ["fixed", "zero"], ["iou_predictions"]),
    ]
    inputs = [
        helper.make_tensor_value_info("batched_images", floats, [1, 3, "h", "w"]),
        helper.make_tensor_value_info("batched_point_coords", floats, [1, 1, 1, 2]),
        helper.make_tensor_value_info("batched_point_labels", floats, [1, 1, 1]),
    ]
    outputs = [
        helper.make_tensor_value_info("output_masks", floats, [1, 1, 2, "h", "w"]),
        helper.make_tensor_value_info("iou_predictions", floats, [1, 1, 2]),
    ]
    graph = helper.make_graph(nodes, "reddish", inputs, outputs, constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10), path)


SIDE, GRID, CHANNELS = 1024, 64, 256  # px that SAM sees, and its embedding
FORMS = ("efficient_sam", "sam", "sam, preprocessing", "optimum")


def pair(folder: Path, form: str) -> tuple[Path, Path]:
    """Write an encoder and a decoder, whose names, types and shapes are those of a usual export.

    The embedding is how much redder than green each 16th part of a side is. The object is all that is on the same side of the least
    redness as where the point is. Masks that are not to be chosen show the opposite: in SAM the first, although it has the best score.

    Args:
        folder: of encoder.onnx and decoder.onnx.
        form: one of `FORMS`: EfficientSAM's own exporter; SAM's own decoder with an encoder that was exported as it is, or with
            samexporter's preprocessing; transformers' SAM by Optimum.
    """
    paths = folder / "encoder.onnx", folder / "decoder.onnx"
    for path, (nodes, inputs, outputs, constants) in zip(paths, (_encoder(form), _decoder(form))):
        values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = helper.make_graph(
            nodes, path.stem, [_value(*each) for each in inputs], [_value(*each) for each in outputs], values
        )
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10), path)
    return paths


def _value(name: str, shape: list, kind: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def _encoder(form: str) -> tuple[list, list, list, dict]:
    make = helper.make_node
    mean, deviation = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    constants = {
        "red": np.float32([1, -1, 0]).reshape(1, 3, 1, 1),
        "wide": np.int64([1, CHANNELS, GRID, GRID]),
    }
    embedding = ("image_embeddings", [1, CHANNELS, GRID, GRID])
    outputs = [embedding]
    if form == "efficient_sam":
        inputs = [("batched_images", ["batch", 3, "height", "width"])]
        constants["grid"] = np.int64([1, 1, GRID, GRID])
        nodes = [
            make("Conv", ["batched_images", "red"], ["redness"]),
            make("Resize", ["redness", "", "", "grid"], ["small"], mode="linear"),
        ]
    else:
        if form == "sam, preprocessing":
            inputs = [("input_image", ["image_height", "image_width", 3])]
            constants |= {"side": np.int64([SIDE, SIDE, 3]), "zero": np.int64([0, 0, 0]), "batch": np.int64([0])}
            constants |= {"mean": mean, "deviation": deviation}
            nodes = [
                make("Sub", ["input_image", "mean"], ["centred"]),
                make("Div", ["centred", "deviation"], ["normal"]),
                make("Shape", ["normal"], ["given"]),
                make("Sub", ["side", "given"], ["lacking"]),
                make("Concat", ["zero", "lacking"], ["pads"], axis=0),
                make("Pad", ["normal", "pads"], ["padded"]),
                make("Transpose", ["padded"], ["planes"], perm=[2, 0, 1]),
                make("Unsqueeze", ["planes", "batch"], ["seen"]),
            ]
        else:
            name = "pixel_values" if form == "optimum" else "x"
            inputs = [(name, [1, 3, SIDE, SIDE])]
            nodes = [make("Identity", [name], ["seen"])]
        nodes += [  # 0..1 again, in the padding too
            make("Mul", ["seen", "deviation2"], ["scaled"]),
            make("Add", ["scaled", "mean2"], ["bytes"]),
            make("Conv", ["bytes", "red"], ["redness"]),
            make("AveragePool", ["redness"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
            make("Div", ["pooled", "white"], ["small"]),
        ]
        constants |= {
            "white": np.float32(255),
            "mean2": mean.reshape(1, 3, 1, 1),
            "deviation2": deviation.reshape(1, 3, 1, 1),
        }
    nodes.append(make("Expand", ["small", "wide"], ["image_embeddings"]))
    if form == "optimum":
        nodes.append(make("Identity", ["image_embeddings"], ["image_positional_embeddings"]))
        outputs = [embedding, ("image_positional_embeddings", embedding[1])]
    return nodes, inputs, outputs, constants


def _decoder(form: str) -> tuple[list, list, list, dict]:
    make, whole = helper.make_node, TensorProto.INT64
    inputs = [("image_embeddings", [1, CHANNELS, GRID, GRID])]
    constants = {
        "start": np.int64([0]), "one": np.int64([1]), "least": np.float32(0.33), "swap": np.int64([1, 0]),
        "flat": np.int64([GRID, GRID]), "axes": np.int64([0]),
        "nothing": np.float32(0),
    }  # fmt: skip
    if form == "efficient_sam":
        point, masks, scores = "batched_point_coords", "output_masks", "iou_predictions"
        inputs += [
            (point, [1, "num_points", 1, 2]), ("batched_point_labels", [1, "num_points", 1]), ("orig_im_size", [2], whole)
        ]  # fmt: skip
        used = ["batched_point_labels"]
        constants["scores"] = np.float32([[[0.2, 0.9, 0.3]]])
        outputs = [(masks, None), (scores, [1, 1, 3])]
        which = [-1, 1, -1]
    elif form == "optimum":
        point, masks, scores = "input_points", "pred_masks", "iou_scores"
        inputs += [
            ("image_positional_embeddings", [1, CHANNELS, GRID, GRID]), (point, ["batch", "point_batch", "points", 2]),
            ("input_labels", ["batch", "point_batch", "points"], whole),
        ]  # fmt: skip
        used = ["image_positional_embeddings", "input_labels"]
        constants["scores"] = np.float32([[[0.2, 0.9, 0.3]]])
        outputs = [(scores, [1, 1, 3]), (masks, None)]
        which = [-1, 1, -1]
    else:
        point, masks, scores = "point_coords", "low_res_masks", "iou_predictions"
        inputs += [
            (point, [1, "num_points", 2]), ("point_labels", [1, "num_points"]), ("mask_input", [1, 1, 256, 256]),
            ("has_mask_input", [1]), ("orig_im_size", [2]),
        ]  # fmt: skip
        used = ["point_labels", "mask_input", "has_mask_input", "orig_im_size"]
        constants["scores"] = np.float32([[0.99, 0.2, 0.9, 0.3]])
        outputs = [("masks", None), (scores, [1, 4]), (masks, None)]
        which = [-1, -1, 1, -1]
    constants["which"] = np.float32(which).reshape(1, -1, 1, 1)
    constants["all"] = np.int64([-1, 2])
    nodes = [
        make("Slice", ["image_embeddings", "start", "one", "one"], ["map"]),
        make("Reshape", ["map", "flat"], ["grid"]),
        make("Sub", ["grid", "least"], ["signed"]),
        make("Reshape", [point, "all"], ["points"]),
        make("Slice", ["points", "start", "one", "axes"], ["at"]),
    ]
    if form == "efficient_sam":  # of px of the picture, as its decoder rescales them
        constants["sides"] = np.float32(GRID)
        nodes += [
            make("Gather", ["orig_im_size", "swap"], ["across"]),
            make("Cast", ["across"], ["size"], to=TensorProto.FLOAT),
            make("Div", ["at", "size"], ["share"]),
            make("Mul", ["share", "sides"], ["cell"]),
        ]
    else:
        constants["step"] = np.float32(SIDE / GRID)
        nodes.append(make("Div", ["at", "step"], ["cell"]))
    nodes += [
        make("Floor", ["cell"], ["floor"]),
        make("Cast", ["floor"], ["index"], to=whole),
        make("Gather", ["index", "swap"], ["row"], axis=1),
        make("GatherND", ["signed", "row"], ["there"]),
        make("Sign", ["there"], ["sign"]),
        make("Mul", ["signed", "sign"], ["object"]),
        make("Unsqueeze", ["object", "axes"], ["object1"]),
        make("Unsqueeze", ["object1", "axes"], ["object2"]),
        make("Mul", ["object2", "which"], ["small"]),
    ]
    size = "size4"
    if form == "efficient_sam":
        constants["fixed"] = np.int64([1, len(which)])
        nodes += [make("Concat", ["fixed", "orig_im_size"], [size], axis=0)]
    else:
        constants[size] = np.int64([1, len(which), 256, 256])
    name = "large" if form in ("efficient_sam", "optimum") else masks
    nodes.append(make("Resize", ["small", "", "", size], [name], mode="linear"))
    if name == "large":
        nodes.append(make("Unsqueeze", ["large", "one"], [masks]))
    else:
        nodes.append(
            make("Neg", [masks], ["masks"])
        )  # of another size than the picture where its sides were frozen: not to be used
    zeros = []
    for i, each in enumerate(used):  # every input counts for something, as in the models
        nodes += [
            make("Cast", [each], [f"float{i}"], to=TensorProto.FLOAT),
            make("ReduceMax", [f"float{i}"], [f"most{i}"], keepdims=0),
            make("Mul", [f"most{i}", "nothing"], [f"zero{i}"]),
        ]
        zeros.append(f"zero{i}")
    nodes += [make("Sum", ["scores", *zeros], [scores])]
    return nodes, inputs, outputs, constants

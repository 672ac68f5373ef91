"""MTCNN: a cascade of three small networks that finds faces and their key points, on onnxruntime and NumPy.

Method: Zhang, Zhang, Li and Qiao, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks",
IEEE Signal Processing Letters 23 (2016). The weights and where they come from are in `models/mtcnn/README.md`. Beyond
the paper: the key points are averaged over several crops and their mirror images, and in video a face is sought near
its last place before the whole cascade runs.
"""

from dataclasses import dataclass
from importlib.resources import files

import cv2
import numpy as np

from vexpress_trt.runtime.faces.boxes import crops, distinct, resized, shifted, square
from vexpress_trt.runtime.faces.face import Detector, Face, by_size_and_score

P_SIDE, R_SIDE, O_SIDE = 12, 24, 48  # what each network sees of a face, in pixels (paper, figure 2)
P_STRIDE = 2
PYRAMID_FACTOR = 0.709  # each level of the image pyramid has half the area of the one before
MAX_CANDIDATES = 128
REFINE_SCALES = (0.7, 0.8, 0.9, 1.0, 1.1)
LEFT_EYE, RIGHT_EYE, NOSE = 0, 1, 2  # of the last network's five points; left and right in the image


@dataclass(frozen=True)
class MtcnnSettings:
    """Where and how eagerly to look.

    min_face: smallest face looked for, as a part of the image's short side.
    work_side: images with a longer short side are reduced to it first, in pixels.
    p_score, r_score, o_score: probability that each network must give to let a candidate pass.
    near_score: probability that the last network must give for a face to count as found again near its last place.
    threads: of each network's session.
    """

    min_face: float = 1 / 16
    work_side: int = 640
    p_score: float = 0.6
    r_score: float = 0.7
    o_score: float = 0.8
    near_score: float = 0.9
    threads: int = 2


class MtcnnDetector(Detector):
    """The embedded detector: needs no further files and no network, takes images of any size."""

    name = "mtcnn"

    def __init__(self, settings: MtcnnSettings | None = None) -> None:
        self.settings = settings or MtcnnSettings()
        threads = self.settings.threads
        self._proposal = _Network("pnet", threads)
        self._refinement = _Network("rnet", threads)
        self._output = _Network("onet", threads)

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces in `image` (uint8 RGB [H, W, 3]), the largest and surest first; empty where there is none."""
        image, scale = self._reduced(image)
        faces = self._cascade(image) or self._closeup(image)
        return by_size_and_score([face.scaled(1 / scale, 1 / scale) for face in faces])

    def detect_near(self, image: np.ndarray, last: Face) -> list[Face]:
        """The one face found again near its last place, or else what `detect` finds."""
        reduced, scale = self._reduced(image)
        boxes, _ = self._pass(self._output, reduced, last.scaled(scale, scale).box[None], O_SIDE)
        face = self._face(reduced, boxes[0])
        if face.score >= self.settings.near_score:
            return [face.scaled(1 / scale, 1 / scale)]
        return self.detect(image)

    def _reduced(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        height, width = image.shape[:2]
        scale = min(1.0, self.settings.work_side / min(height, width))
        if scale < 1:
            image = resized(image, round(width * scale), round(height * scale))
        return image, scale

    def _cascade(self, image: np.ndarray) -> list[Face]:
        boxes = self._propose(image)
        if len(boxes):
            boxes, score = self._pass(self._refinement, image, boxes, R_SIDE)
            passed = np.flatnonzero(score >= self.settings.r_score)
            boxes = boxes[passed[distinct(boxes[passed], score[passed], 0.7)]]
        if len(boxes):
            boxes, score = self._pass(self._output, image, boxes, O_SIDE)
            passed = np.flatnonzero(score >= self.settings.o_score)
            boxes = boxes[passed[distinct(boxes[passed], score[passed], 0.7, of_smaller=True)]]
        faces = [self._face(image, box) for box in boxes]
        return [face for face in faces if face.score >= self.settings.o_score]

    def _closeup(self, image: np.ndarray) -> list[Face]:
        """A face larger than the picture, and so than the largest window of the cascade: look from further away."""
        margin = min(image.shape[:2]) // 2
        wide = cv2.copyMakeBorder(image, *[margin] * 4, cv2.BORDER_CONSTANT, value=(127, 127, 127))
        return [Face(face.points - margin, face.box - margin, face.score) for face in self._cascade(wide)]

    def _propose(self, image: np.ndarray) -> np.ndarray:
        """Candidate boxes float32 [N, 4]: the proposal network over an image pyramid, from small faces to large."""
        height, width = image.shape[:2]
        scale = P_SIDE / (self.settings.min_face * min(height, width))
        boxes, scores = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.float32)]
        while min(height, width) * scale >= P_SIDE:
            level = resized(image, round(width * scale), round(height * scale))
            shifts, probability = self._proposal.run(level[None])
            rows, columns = np.nonzero(probability[0, :, :, 1] >= self.settings.p_score)
            corner = np.stack([columns, rows], axis=1).astype(np.float32) * P_STRIDE
            found = np.concatenate([corner, corner + P_SIDE], axis=1)
            score = probability[0, rows, columns, 1]
            kept = distinct(found, score, 0.5)[:MAX_CANDIDATES]
            found = shifted(found[kept], shifts[0, rows[kept], columns[kept]])
            boxes.append(found * np.tile([width / level.shape[1], height / level.shape[0]], 2).astype(np.float32))
            scores.append(score[kept])
            scale *= PYRAMID_FACTOR
        every, score = np.concatenate(boxes), np.concatenate(scores)
        return every[distinct(every, score, 0.7)[:MAX_CANDIDATES]]

    def _pass(
        self, network: "_Network", image: np.ndarray, boxes: np.ndarray, side: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [N, 4] as a network corrects them, and the probability of a face in each, [N]."""
        squares = np.round(square(boxes))
        shifts, *_, probability = network.run(crops(image, squares, side))
        return shifted(squares, shifts), probability[:, 1]

    def _face(self, image: np.ndarray, box: np.ndarray) -> Face:
        """The face in a box, seen in several sizes and mirrored.

        One look at 48 pixels is noisy. The mean over scales and mirror images is nearer to insightface's points: 1.9
        to 2.7 instead of 2.5 to 2.8 pixels on average, and steadier from frame to frame.
        """
        squares = np.round(np.concatenate([square(box[None], scale) for scale in REFINE_SCALES]))
        seen = crops(image, squares, O_SIDE)
        _, points, probability = self._output.run(np.concatenate([seen, seen[:, :, ::-1]]))
        straight, mirrored = np.split(points.reshape(-1, 2, 5), 2)
        mirrored = mirrored[:, :, [RIGHT_EYE, LEFT_EYE, NOSE]] * [[-1], [1]] + [[1], [0]]
        points = np.concatenate([straight[:, :, :3], mirrored])
        mean = _in_image(points, np.concatenate([squares, squares])).mean(axis=0)
        return Face(mean.astype(np.float32), box.astype(np.float32), float(probability[:, 1].mean()))


class _Network:
    """One of the three ONNX files.

    Found by trial on real faces: input is float32 NHWC, RGB, (value - 127.5) / 128, and its two picture axes are
    swapped, so x comes before y. Outputs by position: edge shifts, for the last network also five x then five y
    coordinates in parts of the box, then the probabilities of no face and face.
    """

    def __init__(self, name: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Sizes and counts change from call to call: an arena would keep the largest of everything.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model = (files("vexpress_trt.models") / "mtcnn" / f"{name}.onnx").read_bytes()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Outputs for uint8 RGB [N, H, W, 3]; those with picture axes come back as [N, rows, columns, C]."""
        swapped = np.ascontiguousarray(images.transpose(0, 2, 1, 3), np.float32)
        swapped -= 127.5
        swapped /= 128
        outputs = self._session.run(None, {self._input: swapped})
        return [output.transpose(0, 2, 1, 3) if output.ndim == 4 else output for output in outputs]


def _in_image(points: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Points [N, 2, K] in parts of their boxes as [N, K, 2] in pixels of the image."""
    points = points.reshape(len(squares), 2, -1).transpose(0, 2, 1)
    return points * (squares[:, None, 2:] - squares[:, None, :2]) + squares[:, None, :2]

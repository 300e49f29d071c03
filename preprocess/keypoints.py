"""The 133 points of a whole body (COCO-WholeBody order) and their parts. Pure indices; knows no model.

Source of the order: COCO-WholeBody (Jin et al. 2020), as ViTPose's whole-body checkpoint emits it. "Left" and
"right" are the person's own.
"""

from typing import Final

NUM_KEYPOINTS: Final = 133

BODY: Final = slice(0, 17)
FEET: Final = slice(17, 23)  # left big toe, small toe, heel, then right
FACE: Final = slice(23, 91)
LEFT_HAND: Final = slice(91, 112)  # wrist first
RIGHT_HAND: Final = slice(112, 133)
HEAD: Final = slice(0, 5)  # of the body's points: nose, eyes, ears

NOSE: Final = 0
LEFT_EYE: Final = 1
RIGHT_EYE: Final = 2
LEFT_EAR: Final = 3
RIGHT_EAR: Final = 4
LEFT_SHOULDER: Final = 5
RIGHT_SHOULDER: Final = 6
LEFT_ELBOW: Final = 7
RIGHT_ELBOW: Final = 8
LEFT_WRIST: Final = 9
RIGHT_WRIST: Final = 10
LEFT_HIP: Final = 11
RIGHT_HIP: Final = 12
LEFT_KNEE: Final = 13
RIGHT_KNEE: Final = 14
LEFT_ANKLE: Final = 15
RIGHT_ANKLE: Final = 16

VISIBLE: Final = 0.5  # score from which a point is drawn; Wan2.2 human_visualization.py

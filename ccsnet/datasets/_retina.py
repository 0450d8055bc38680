"""What the four sets of retinal vessels share."""

COLOURS = {"background": (120, 120, 120), "vessel": (6, 230, 230)}

# Files of 8 bits hold 0 and 255, but not all of them cleanly: half of 256 is the border. Files of
# 1 bit, such as all labels of CHASE_DB1, hold 0 and 1.
RAW_TO_CLASS = {raw: raw // 128 for raw in range(256)} | {1: 1}

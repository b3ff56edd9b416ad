"""Objects without a clear shape, which an evaluator learns to recognize as such.

A network of too little capacity predicts the mean of all cubes that an object could be: a blob with
rounded corners, which a person calls a cylinder, or nothing at all. An evaluator that has only seen
clear objects assigns it one of the three shapes. So it is also trained on unclear ones: shapes in
between, which the renderer makes exactly; real frames in which one object is mixed with others of
its color, blurred, or warped; and images sampled from earlier weights.

The labels of such images are (N, L + 8): the number of objects of each label, then for each color
the number of objects of no clear shape. An entry of -1 marks an object that may or may not have a
clear shape.
"""

from iclevr_diffusion.data.unclear.between import shapes_in_between
from iclevr_diffusion.data.unclear.corrupted import corrupted_objects
from iclevr_diffusion.data.unclear.sheets import read_unclear_images, write_unclear_images
from iclevr_diffusion.data.unclear.targets import NUM_OUTPUTS, with_colors

__all__ = [
    "NUM_OUTPUTS",
    "corrupted_objects",
    "read_unclear_images",
    "shapes_in_between",
    "with_colors",
    "write_unclear_images",
]

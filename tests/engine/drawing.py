"""A request from its prompt to its last step, in one process."""

from executor.group import Group
from executor.image import ImageSpec
from executor.latents import State
from executor.pipelines import Pipeline


def draw(pipeline: Pipeline, image: ImageSpec, group: Group) -> State:
    """The state after all steps."""
    state = pipeline.start(image, pipeline.encode(image))
    while not state.done:
        (state,) = pipeline.step([state], group)
    return state

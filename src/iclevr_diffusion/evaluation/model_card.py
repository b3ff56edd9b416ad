"""Model cards: a README that starts with metadata for the Hugging Face Hub."""

from collections.abc import Mapping
from pathlib import Path

from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.models.known_networks import network_config
from iclevr_diffusion.utils.registry import CLASS_NAME
from iclevr_diffusion.utils.weights import count_parameters

TEMPLATE = Path(__file__).with_name("model_card.md")  # with {placeholders}
NOT_MEASURED = "Not measured."


def model_card(
    model: Model | GAN,
    title: str,
    introduction: str,
    commands: str,
    facts: Mapping[str, str | None],
    evaluation: str = NOT_MEASURED,
    license: str = "apache-2.0",
) -> str:
    """Format a model card.

    Args:
        model: The model.
        title: The heading.
        introduction: A paragraph, and images.
        commands: How to use the weights, in a shell or in Python.
        facts: Rows of the training table; None values are left out.
        evaluation: Tables, as :func:`~.evaluation_report.markdown` formats them.
        license: License of the weights, by its identifier on the Hub.
    """
    return TEMPLATE.read_text("utf-8").format(
        license=license,
        title=title,
        introduction=introduction,
        commands=commands,
        facts="\n".join(f"| {key} | {value} |" for key, value in facts.items() if value),
        evaluation=evaluation.strip(),
        labels=len(model.vocabulary),
    )


def network_facts(model: Model | GAN) -> dict[str, str]:
    """Return the facts that apply to any network."""
    net = network_config(model.net)
    kind = net.pop(CLASS_NAME)
    facts = {
        "network": f"`{kind}`, {count_parameters(model.net) / 1e6:.2f} M parameters: `{net}`",
        "one pass": f"{model.flops_forward() / 1e9:.2f} GFLOPs per image",
    }
    if isinstance(model, Model):
        facts["prediction"] = model.prediction.name
        facts["noise schedule"] = str(model.schedule)
    return facts | {"samples with": str(model.pipeline())}

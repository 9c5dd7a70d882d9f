"""Images and sounds become vectors: bare features, and transformers' own models of them."""

import io
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from PIL import Image
from pyarrow import parquet

from graft import models, runner
from graft.errors import DataError, ModelError
from graft.models import media
from graft.spec import Experiment, ModelSource


def wav(samples: np.ndarray, rate: int = 8000, width: int = 2, channels: int = 1) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setframerate(rate)
        file.setsampwidth(width)
        file.setnchannels(channels)
        whole = np.repeat(samples, channels)
        if width == 1:
            file.writeframes(((whole + 1) * 127.5).astype(np.uint8).tobytes())
        elif width == 3:
            wide = (whole * (2**23 - 1)).astype("<i4")
            file.writeframes(wide.view(np.uint8).reshape(-1, 4)[:, :3].tobytes())
        else:
            file.writeframes((whole * (2 ** (8 * width - 1) - 1)).astype(f"<i{width}").tobytes())
    return stream.getvalue()


def tone(hertz: float, seconds: float = 0.5, rate: int = 8000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


GREY = (np.arange(28 * 28) % 251).astype(np.uint8).reshape(28, 28)


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)])
def test_every_wav_of_whole_numbers_is_the_same_sound(width: int, channels: int) -> None:
    samples, rate = media.sound(wav(tone(440), width=width, channels=channels))
    assert rate == 8000
    np.testing.assert_allclose(samples, tone(440), atol=0.02)


def test_a_bare_square_and_a_png_are_the_same_image() -> None:
    np.testing.assert_array_equal(media.image(GREY.tobytes()), GREY)
    np.testing.assert_array_equal(media.image(png(GREY)), GREY)
    assert media.image(png(np.stack([GREY] * 3, axis=-1))).shape == (28, 28, 3)


def test_pixels_and_log_mels_are_vectors() -> None:
    pixels = models.load("features:pixels")
    np.testing.assert_allclose(pixels.embed([GREY.tobytes()])[0], GREY.reshape(-1) / 255, rtol=1e-6)
    large = np.repeat(np.repeat(GREY, 2, axis=0), 2, axis=1)
    assert pixels.embed([png(large), GREY.tobytes()]).shape == (2, 784)
    assert pixels.embed([png(np.stack([large] * 3, axis=-1))]).shape == (1, 2352)
    with pytest.raises(DataError, match="grey images beside colour ones"):
        pixels.embed([png(GREY), png(np.stack([GREY] * 3, axis=-1))])
    mels = models.load("features:log-mel").embed([wav(tone(200)), wav(tone(2000)), wav(tone(200, 0.02))])
    assert mels.shape == (3, 320)
    low, high = mels[:2].reshape(2, 8, 40).mean(axis=1)
    assert low.argmax() + 10 < high.argmax()  # another pitch is another band
    again = models.load("features:log-mel").embed([wav(tone(200, rate=16000), rate=16000)])[0].reshape(8, 40)
    assert abs(int(again.mean(axis=0).argmax()) - int(low.argmax())) <= 1  # whatever the number of samples


def test_sixteen_bits_and_transparency_are_what_one_sees() -> None:
    ramp = np.linspace(0, 65535, 784).astype(np.uint16).reshape(28, 28)
    np.testing.assert_allclose(media.image(png(ramp)), ramp / 257, atol=1)
    clear = np.zeros((4, 4, 4), np.uint8)  # black that nobody sees
    assert (media.image(png(clear)) == 255).all()
    for mode, shape in (("1", (28, 28)), ("LA", (28, 28)), ("P", (28, 28, 3)), ("CMYK", (28, 28, 3))):
        stream = io.BytesIO()
        Image.fromarray(GREY).convert(mode).save(stream, "TIFF")
        assert media.image(stream.getvalue()).shape == shape


def enormous() -> bytes:
    """A PNG whose header says 50,000 x 50,000."""
    data = bytearray(png(GREY))
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    "data", [b"no image", png(GREY)[:60], b"", b"corrupted file!!", b"<html>" + b" " * 9994, enormous()]
)
def test_what_is_no_image_is_one_line(data: bytes) -> None:
    with pytest.raises(DataError, match="image"):
        media.image(data)


@pytest.mark.parametrize(
    "data",
    [
        b"no sound",
        wav(tone(100))[:30],
        wav(np.zeros(0)),
        wav(tone(100))[:-1],
        wav(tone(100), width=3)[:-1],
        wav(tone(100), channels=2)[:-2],
        wav(tone(100), rate=10),
        wav(tone(100), rate=1_000_000_000),
    ],
)
def test_what_is_no_sound_is_one_line(data: bytes) -> None:
    with pytest.raises(DataError, match="sound"):
        media.sound(data)


def test_two_rates_without_a_common_factor_cost_no_more() -> None:
    samples = np.sin(2 * np.pi * 440 * np.arange(20_000) / 200_003).astype(np.float32)
    found = media.resampled(samples, 200_003, 16_000)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(found)) / 16_000)
    np.testing.assert_allclose(found[100:-100], expected[100:-100], atol=0.05)


def test_an_image_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MOST_PIXELS", 100)
    with pytest.raises(DataError, match="28 x 28 pixels; give at most 100"):
        media.image(png(GREY))


def saved(folder: Path, network: Any, prepare: Any) -> Path:
    network.save_pretrained(folder)
    prepare.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["vit", "resnet"])
def sees(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random image model."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        if request.param == "vit":
            config = transformers.ViTConfig(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                image_size=32,
                patch_size=8,
            )
            network: Any = transformers.ViTModel(config)
        else:
            network = transformers.ResNetModel(
                transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
            )
    prepare = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    return saved(tmp_path_factory.mktemp(request.param), network, prepare)


@pytest.fixture(scope="module")
def hears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Whisper."""
    config = transformers.WhisperConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=20,
        max_source_positions=50,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = transformers.WhisperModel(config)
    prepare = transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    return saved(tmp_path_factory.mktemp("whisper"), network, prepare)


def test_an_image_model_of_transformers(sees: Path) -> None:
    model = models.load(str(sees))
    assert model.reads == ("image",)
    found = model.embed([png(GREY), GREY.tobytes(), png(255 - GREY)])
    assert found.shape == (3, 16)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert np.abs(found[0] - found[2]).max() > 1e-3
    np.testing.assert_allclose(model.embed([png(255 - GREY)])[0], found[2], atol=1e-5)
    assert model.usage.forward_passes == 4


def test_a_speech_encoder_is_averaged_over_what_is_heard(hears: Path) -> None:
    model = models.load(str(hears))
    assert model.reads == ("audio",)
    short, long = model.embed([wav(tone(300, 0.2)), wav(tone(300, 0.9))])
    assert short.shape == (16,)
    network = transformers.AutoModel.from_pretrained(hears, dtype=torch.float32).eval()
    prepare = transformers.AutoFeatureExtractor.from_pretrained(hears)
    samples = media.resampled(*media.sound(wav(tone(300, 0.2))), 16000)
    with torch.no_grad():
        states = network.get_encoder()(prepare(samples, sampling_rate=16000, return_tensors="pt")["input_features"])
    np.testing.assert_allclose(short, states.last_hidden_state[0, :10].mean(dim=0).numpy(), atol=1e-5)
    assert np.abs(short - long).max() > 1e-4


def test_a_sound_longer_than_the_encoder_hears_is_refused(hears: Path) -> None:
    with pytest.raises(DataError, match=r"lasts 1\.5 seconds; .* hears 1: cut it"):
        models.load(str(hears)).embed([wav(tone(300, 1.5))])


def test_an_encoder_whose_vectors_depend_on_their_batch_is_refused(tmp_path: Path) -> None:
    config = transformers.ASTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    saved(tmp_path, transformers.ASTModel(config), transformers.ASTFeatureExtractor(num_mel_bins=16))
    with pytest.raises(ModelError, match="what it hears has no fixed length"):
        models.load(str(tmp_path))


@pytest.mark.parametrize("changes", [{"pooling": "cls"}, {"layer": 1}, {"dtype": "float16"}])
def test_what_is_for_text_is_refused(changes: dict[str, Any], sees: Path) -> None:
    for source in (str(sees), "features:pixels"):
        with pytest.raises(ModelError, match="does not read text: leave it out"):
            models.load(ModelSource(source=source, **changes))


def test_a_model_of_images_is_a_methods_encoder(sees: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [png((random.integers(0, 90, (28, 28)) + (at % 2) * 150).astype(np.uint8)) for at in range(60)]
    table = pa.table({"picture": pa.array(images, pa.binary()), "label": ["dark", "light"] * 30})
    parquet.write_table(table, tmp_path / "pictures.parquet")
    task = {"name": "file", "path": str(tmp_path / "pictures.parquet"), "image": "picture", "label": "label"}
    values = {"name": "see", "task": task, "regime": {"examples": 16}, "method": {"name": "probe"}}
    for source in (str(sees), "features:pixels"):
        spec = Experiment.from_mapping({**values, "models": {"encoder": {"source": source}}})
        assert (runner.run(spec, tmp_path).metric("accuracy") or 0) > 0.9


def test_the_wrong_kind_of_input_names_what_would_do(sees: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"a {at},x\nb {at},y\n" for at in range(60)))
    values = {
        "name": "see",
        "task": {"name": "file", "path": str(tmp_path / "rows.csv"), "text": "text", "label": "label"},
        "models": {"encoder": {"source": str(sees)}},
        "method": {"name": "probe"},
    }
    with pytest.raises(ModelError, match="reads image, the task's inputs are text; use a model of text"):
        runner.run(Experiment.from_mapping(values), tmp_path)
    with pytest.raises(ModelError, match=r"no such features; did you mean 'log-mel'\?"):
        models.load("features:logmel")

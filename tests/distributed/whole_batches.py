"""The stream as one process with the whole batch sees it."""

from nar_scale.config import Config
from nar_scale.data import DatasetIndex, SampleFormat, SampleOrder, TokenStream


def whole_batches(config: Config, vocabulary_size: int = 257) -> TokenStream:
    index = DatasetIndex.open(config.data.directory, config.data.train, progress=False)
    return TokenStream(
        index,
        SampleOrder(index.counts, config.training.seed, config.data.shuffle_window),
        SampleFormat(config.model.max_seq_len, vocabulary_size, document_field=config.data.document_field),
        global_batch_size=config.training.global_batch_size,
        micro_batch_size=config.training.global_batch_size,
        rank=0,
        world_size=1,
        workers=0,
    )

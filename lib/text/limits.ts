// limits.ts - every bound of lib/text in one place. Files and prompts are somebody else's data: each bound turns a hang or
// an abort into a typed error.

/** Longest text one encode call takes, in UTF-8 bytes. */
export const MAX_PROMPT_BYTES = 8 * 1024 * 1024;

/** Texts up to this many UTF-16 units are encoded on the calling thread (about 40 ms); longer ones in a worker thread. */
export const MAX_INLINE_LENGTH = 32 * 1024;

/** Time one text may take: a fixed part, and a part per 1024 UTF-16 units (ten times what the slowest known text needs). */
export const ENCODE_BASE_MS = 2000;
export const ENCODE_MS_PER_1024 = 5;

/** Time the encoding thread may take to read its tokenizer.json. */
export const ENCODER_START_MS = 30_000;

export const MAX_TOKENIZER_BYTES = 64 * 1024 * 1024;
export const MAX_TOKENIZER_CONFIG_BYTES = 16 * 1024 * 1024;

/** Ids, and so table sizes, that a tokenizer.json may ask for; the largest vocabularies known have 2^18. */
export const MAX_TOKEN_ID = 2 ** 21 - 1;
export const MAX_MERGES = 2 ** 21;
export const MAX_ADDED_TOKENS = 65_536;
export const MAX_ADDED_TOKEN_LENGTH = 512;
export const MAX_PRE_TOKENIZER_STAGES = 32;
export const MAX_PATTERN_LENGTH = 16_384;

/** Limits of one template run. */
export const MAX_TEMPLATE_BYTES = 256 * 1024;
export const TEMPLATE_MS = 1000;
export const TEMPLATE_HEAP_MB = 128;
export const MAX_RENDERED_LENGTH = 4 * 1024 * 1024;
/** How much longer than {@link TEMPLATE_MS} the parent waits before it kills the process that renders. */
export const TEMPLATE_GRACE_MS = 400;
export const RENDERER_START_MS = 15_000;

/** Limits of one conversation. */
export const MAX_MESSAGES = 4096;
export const MAX_TOOLS = 1024;
export const MAX_JSON_DEPTH = 64;
export const MAX_JSON_VALUES = 100_000;

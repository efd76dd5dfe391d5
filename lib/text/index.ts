// index.ts - what lib/text offers: tokenizer, streaming detokenizer, chat templates.
export { Detokenizer, type DetokenizerOptions } from './detokenizer';
export { type DecodeOptions, type EncodeOptions, Tokenizer } from './tokenizer';

// index.ts - what lib/text offers: tokenizer, streaming detokenizer, chat templates.
export type { AddedToken, Segment } from './added-tokens';
export type { ChatMessage, Json, Role, ToolCall } from './chat-messages';
export { ChatTemplate, type RenderChatOptions } from './chat-template';
export { BUILT_IN_TEMPLATES, type BuiltInTemplate } from './deepseek-templates';
export { Detokenizer, type DetokenizerOptions } from './detokenizer';
export { endsInThought, type ReasoningPiece, ReasoningSplitter } from './reasoning';
export { type DecodeOptions, type EncodeOptions, Tokenizer } from './tokenizer';

// routing.ts - how a router chooses experts: what config.json says, completed by whether the checkpoint has a bias tensor.
import { MlaError } from '../errors';
import type { ModelConfig } from './config';
import type { Fields } from './fields';

/** How router logits become scores. */
export type ScoringFunc = 'softmax' | 'sigmoid';
/**
 * How experts are chosen by score: `greedy` the best k; `group_limited_greedy` the best k within the groups whose best
 * expert is best; `noaux_tc` the best k by score plus bias within the groups whose best two sum highest.
 */
export type TopkMethod = 'greedy' | 'group_limited_greedy' | 'noaux_tc';

/** A {@link ModelConfig} whose routing is settled. */
export interface ResolvedConfig extends ModelConfig {
  readonly scoring_func: ScoringFunc;
  readonly topk_method: TopkMethod;
}

/** Reads scoring_func and topk_method as far as config.json states them (null: not stated). */
export function readRouting(fields: Fields): { scoring_func: ScoringFunc | null; topk_method: TopkMethod | null } {
  const scoring = fields.text('scoring_func') ?? null;
  if (scoring !== null && scoring !== 'softmax' && scoring !== 'sigmoid') {
    throw fields.unsupported('scoring_func', '"softmax" and "sigmoid"');
  }
  const method = fields.text('topk_method') ?? null;
  if (method !== null && method !== 'greedy' && method !== 'group_limited_greedy' && method !== 'noaux_tc') {
    throw fields.unsupported('topk_method', '"greedy", "group_limited_greedy" and "noaux_tc"');
  }
  return { scoring_func: scoring, topk_method: method };
}

/**
 * Settles the routing: what config.json leaves open follows from whether the checkpoint has
 * `mlp.gate.e_score_correction_bias` (then noaux_tc and sigmoid, else greedy and softmax).
 * @throws ERR_UNSUPPORTED_MODEL when config.json and the tensors contradict each other, or when the family's own
 * program would do something else than what the rule says; ERR_CHECKPOINT when a stated noaux_tc has no bias tensor
 */
export function resolveRouting(config: ModelConfig, hasBias: boolean): ResolvedConfig {
  const { source, model_type } = config;
  const refuse = (field: string, found: string | null, supported: string): MlaError => {
    const shown = found === null ? 'nothing' : JSON.stringify(found);
    return new MlaError('ERR_UNSUPPORTED_MODEL', `${source}: ${field}: found ${shown}, supported: ${supported}.`);
  };
  if (config.moe_layers.length === 0) return { ...config, scoring_func: 'softmax', topk_method: 'greedy' };
  if (!hasBias && config.topk_method === 'noaux_tc') {
    throw new MlaError(
      'ERR_CHECKPOINT',
      `${source}: topk_method: found "noaux_tc" and no tensor mlp.gate.e_score_correction_bias, expected one in each MoE layer.`,
    );
  }
  if (!hasBias && model_type !== 'deepseek_v2' && (config.scoring_func === null || config.topk_method === null)) {
    // These families route by sigmoid and bias; without the bias tensor nothing says what the model was trained with.
    const field = config.scoring_func === null ? 'scoring_func' : 'topk_method';
    throw refuse(field, null, `both scoring_func and topk_method stated, or an e_score_correction_bias tensor`);
  }
  const topk_method = config.topk_method ?? (hasBias ? 'noaux_tc' : 'greedy');
  const scoring_func = config.scoring_func ?? (hasBias ? 'sigmoid' : 'softmax');
  if (hasBias && topk_method !== 'noaux_tc') {
    throw refuse('topk_method', topk_method, '"noaux_tc" where the checkpoint has e_score_correction_bias tensors');
  }
  if (topk_method === 'group_limited_greedy' && scoring_func === 'sigmoid') {
    throw refuse('scoring_func', scoring_func, '"softmax" with topk_method "group_limited_greedy"');
  }
  if (topk_method === 'noaux_tc' && config.n_group > 1 && config.n_routed_experts / config.n_group < 2) {
    throw refuse('topk_method', topk_method, 'groups of at least 2 experts (a group is ranked by its best two)');
  }
  return { ...config, scoring_func, topk_method };
}

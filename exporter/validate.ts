import type { Model } from './ir/index.js';

/**
 * Checks that a model is well formed: every value has one producer, is produced before it is needed,
 * and no node depends on itself.
 *
 * @throws FlaError `invalid_model` naming the node or value
 */
export function validateModel(_model: Model): void {}

import path from 'node:path';
import { RESULTS } from '../results.js';

/** Reports of `npm run bench:quality`, one for each set. */
export const QUALITY = path.join(RESULTS, 'quality');
export const OCR_RESULTS = 'ocr';
export const EMBEDDING_RESULTS = 'embeddings';

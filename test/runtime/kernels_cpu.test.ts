import { hybridSuite } from './support/hybrid_suite.js';
import { kernelSuite } from './support/kernel_suite.js';

kernelSuite();
hybridSuite(true);

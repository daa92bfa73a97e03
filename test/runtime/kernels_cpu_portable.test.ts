import { kernelSuite } from './support/kernel_suite.js';

kernelSuite('portable');

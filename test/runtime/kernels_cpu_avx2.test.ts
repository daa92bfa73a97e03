import { kernelSuite } from './support/kernel_suite.js';

kernelSuite('avx2');

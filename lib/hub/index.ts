// hub - models on the Hugging Face Hub: the local cache that Python's tools share, downloads into it, and checkpoints
// known by their headers alone.
export { type CacheEnvironment, cacheFolder, findModelFolder } from './cache';
export { HubClient, type HubFile } from './client';
export { type Downloaded, type DownloadOptions, type DownloadProgress, downloadModel } from './download';
export { describeRemote } from './remote-checkpoint';
export { parseRepository, type Repository } from './repository';

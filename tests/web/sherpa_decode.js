// Runs the npm build of sherpa-onnx over WAV files and prints what it heard as JSON.
// usage: node sherpa_decode.js PACKAGE_FOLDER MODEL TOKENS WAV…
const [, , packageFolder, model, tokens, ...wavs] = process.argv;
const sherpa = require(packageFolder);

const recogniser = sherpa.createOnlineRecognizer({
  featConfig: { sampleRate: 16000, featureDim: 80 },
  modelConfig: { zipformer2Ctc: { model }, tokens, numThreads: 1, provider: "cpu", debug: 0 },
  decodingMethod: "greedy_search",
});
const results = wavs.map((wav) => {
  const wave = sherpa.readWave(wav);
  const stream = recogniser.createStream();
  for (let start = 0; start < wave.samples.length; start += 3001) {
    stream.acceptWaveform(wave.sampleRate, wave.samples.subarray(start, start + 3001));
    while (recogniser.isReady(stream)) recogniser.decode(stream);
  }
  stream.inputFinished();
  while (recogniser.isReady(stream)) recogniser.decode(stream);
  const { text, tokens, timestamps } = recogniser.getResult(stream);
  return { text, tokens, timestamps };
});
console.log(JSON.stringify(results));

// The official client, as an application uses it. Argument: the gateway's base URL. Prints one JSON object.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: process.argv[3], maxRetries: 0 });
const messages = [{ role: "user", content: "Where?" }];
const model = "gkt/default";
const said = {};

const collected = async (stream) => {
  const texts = {};
  let last;
  for await (const chunk of stream) {
    for (const choice of chunk.choices) {
      texts[choice.index] = (texts[choice.index] ?? "") + (choice.delta?.content ?? choice.text ?? "");
    }
    last = chunk;
  }
  return { texts, last };
};

const failure = async (promise) => {
  try {
    await promise;
    return null;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code, message: error.message };
  }
};

said.models = (await client.models.list()).data.map((one) => one.id);

said.whole = await client.chat.completions.create({ model, messages, seed: 1, max_tokens: 50 });
said.override = await client.chat.completions.create({ model, messages, gkt: { guidance_tokens: 0 } });
said.suffix = await client.chat.completions.create({ model: `${model}@g=2`, messages });
said.choices = await client.chat.completions.create({ model, messages, n: 2 });
said.stopped = await client.chat.completions.create({ model, messages, stop: ["mat"] });
said.completion = await client.completions.create({ model, prompt: ["Where?", "When?"] });

said.stream = await collected(
  await client.chat.completions.create({ model, messages, stream: true, stream_options: { include_usage: true } }),
);
said.streamedCompletion = await collected(await client.completions.create({ model, prompt: "Where?", stream: true }));

// The helper that puts a message together again, as applications with interfaces use it.
const runner = client.chat.completions.stream({ model, messages });
said.helper = { final: (await runner.finalChatCompletion()).choices[0].message.content };

const { response } = await client.chat.completions.create({ model, messages }).withResponse();
said.header = response.headers.get("x-gkt-route");

said.unknownModel = await failure(client.chat.completions.create({ model: "gpt-4", messages }));
said.wrong = await failure(client.chat.completions.create({ model, messages, max_tokens: 0 }));
said.wrongKey = await failure(
  new OpenAI({ baseURL: process.argv[2], apiKey: "wrong", maxRetries: 0 }).models.list(),
);

console.log(JSON.stringify(said));

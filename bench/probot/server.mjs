// A Probot app that receives workflow_job and does nothing with it, in Probot's leanest form: its Node middleware on a
// bare HTTP server, without the request log of `probot run`.  Prints its port once it listens.
import { createServer } from "node:http";
import { generateKeyPairSync } from "node:crypto";
import { createNodeMiddleware, createProbot } from "probot";

const { privateKey } = generateKeyPairSync("rsa", {
  modulusLength: 2048,
  privateKeyEncoding: { type: "pkcs1", format: "pem" },
  publicKeyEncoding: { type: "pkcs1", format: "pem" },
});
const probot = createProbot({
  overrides: { appId: 1, privateKey, secret: process.env.WEBHOOK_SECRET, logLevel: "error" },
});
const middleware = await createNodeMiddleware((app) => app.on("workflow_job", async () => {}), {
  probot,
  webhooksPath: "/webhook",
});
const server = createServer((request, response) => {
  middleware(request, response, () => response.writeHead(404).end());
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));

// A receiver of webhooks by probot.  Reads WEBHOOK_SECRET, APP_ID and PRIVATE_KEY; prints its port, then each event it took.
import { createServer } from "node:http";
import { createNodeMiddleware, Probot } from "probot";

const say = (content) => console.log(JSON.stringify(content));
const probot = new Probot({
  appId: process.env.APP_ID,
  privateKey: process.env.PRIVATE_KEY,
  secret: process.env.WEBHOOK_SECRET,
  logLevel: "silent",
});
const middleware = await createNodeMiddleware(
  (app) => {
    app.onAny(async ({ id, name, payload }) => {
      say({ id, name, action: payload.action, job: payload.workflow_job?.id, status: payload.workflow_job?.status });
    });
  },
  { probot, webhooksPath: "/webhook" },
);
const server = createServer(middleware);
server.listen(0, "127.0.0.1", () => say({ port: server.address().port }));

// The peer in Node: metered usage as a good engineer of Fastify and Prisma would write it.
//
//     DATABASE_URL=... node server.js PORT CONNECTIONS
//
// One transaction a call, as in benchmarks/peer.py: insert the event once, take its credits
// if they are there. It keeps no ledger and checks no caller.
import Fastify from 'fastify';
import { PrismaPg } from '@prisma/adapter-pg';
import { Prisma, PrismaClient } from '@prisma/client';

const [port, connections] = process.argv.slice(2).map(Number);
const adapter = new PrismaPg({
  connectionString: process.env.DATABASE_URL.split('?')[0],
  max: connections,
});
const prisma = new PrismaClient({ adapter });

const UUID = '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$';
const body = {
  type: 'object',
  required: ['event_id', 'user_id', 'tool_name', 'credits'],
  properties: {
    event_id: { type: 'string', pattern: UUID },
    user_id: { type: 'string', pattern: UUID },
    tool_name: { type: 'string', pattern: '^[A-Za-z0-9._:/-]{1,100}$' },
    credits: { type: 'integer', minimum: 0, maximum: 1000000 },
  },
};

class NoCredits extends Error {}
class EventIdReused extends Error {}

const available = (account) => Number(account.granted - account.used - account.reserved);
// A UUIDv7 carries its time in its first 48 bits.
const timeOf = (id) => new Date(parseInt(id.slice(0, 8) + id.slice(9, 13), 16));

async function record(tx, event) {
  const inserted = await tx.usage.createMany({
    data: [{
      id: event.event_id,
      userId: event.user_id,
      toolName: event.tool_name,
      creditsUsed: BigInt(event.credits),
      timestamp: timeOf(event.event_id),
    }],
    skipDuplicates: true,
  });
  if (inserted.count === 0) return repeated(tx, event);
  // One column compared with others is beyond Prisma's queries.
  const [account] = await tx.$queryRaw(Prisma.sql`
    UPDATE peer_accounts
    SET used = used + ${event.credits}, version = version + 1, updated_at = now()
    WHERE user_id = ${event.user_id}::uuid
      AND granted - used - reserved + overdraft_limit >= ${event.credits}
    RETURNING granted, used, reserved`);
  if (!account) throw new NoCredits();
  return { duplicate: false, available: available(account) };
}

async function repeated(tx, event) {
  const same = await tx.usage.findFirst({
    where: {
      id: event.event_id,
      userId: event.user_id,
      toolName: event.tool_name,
      creditsUsed: BigInt(event.credits),
    },
  });
  if (!same) throw new EventIdReused();
  const account = await tx.account.findUnique({ where: { userId: event.user_id } });
  return { duplicate: true, available: account ? available(account) : 0 };
}

const app = Fastify({ logger: false, keepAliveTimeout: 60000 });
app.post('/v1/usage', { schema: { body } }, async (request, reply) => {
  try {
    return await prisma.$transaction((tx) => record(tx, request.body), {
      maxWait: 20000,
      timeout: 20000,
    });
  } catch (error) {
    if (error instanceof NoCredits) return reply.code(402).send({ detail: 'too few credits' });
    if (error instanceof EventIdReused) return reply.code(409).send({ detail: 'id reused' });
    throw error;
  }
});
await prisma.$connect();
await app.listen({ port, host: '127.0.0.1' });
